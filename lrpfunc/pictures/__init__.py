"""For people with pictures: image files and checkpoints in, heatmaps, HDF5 files and pages out.

What the command line does, as functions. Read on in this order: images, classifiers, explainers, sheets, inspection,
samples, store, places, runs, reports.
"""
