"""Reports: web pages, figures and tables from the files of runs and data sets. No Ray, no PyTorch.

* `scored` reads the scores of a run, `sections` turns them into tables and charts, `gallery` into
  pictures of images, and `page` writes the HTML file.
* `charts` builds Vega-Lite specifications. Charts are drawn when the report is made, so a page
  needs no script for them and no network.
"""
