"""Pictures for people: overlays of masks, contact sheets, text set over them. Open ``visualize.py`` first."""
