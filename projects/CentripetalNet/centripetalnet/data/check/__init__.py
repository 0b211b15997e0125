"""Checks datasets in COCO format or of a function, also for what Detectron2 silently ignores.

A box is x, y, width, height in pixels of its image, as COCO writes it.
"""
