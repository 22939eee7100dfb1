"""From a folder of images to an experiment file that runs."""
