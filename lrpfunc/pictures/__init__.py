"""For people with pictures: image files and checkpoints in, heatmaps, HDF5 files and pages out.

What the command line does, as functions. Its modules are imported directly, by who needs them. Read on in this order:
images, weights, classifiers, traces, explainers, panels, inspection, hdf5, samples, sidefiles, journal, workfile, runs,
shards, merging, report, texts, distributed, demo, selfcheck.
"""

DEFAULT_COMPOSITE = "epsilon_plus_flat"
