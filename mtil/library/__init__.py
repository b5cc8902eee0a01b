"""Read data sets, train, evaluate and predict in the calling process, without Ray."""
