"""The steps of a run as functions of one process, without Ray: data set, training, figures."""
