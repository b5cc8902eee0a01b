"""One module per tracker. No other module imports the library of a tracker."""
