"""Checks datasets in COCO format or of a function, also for what Detectron2 silently ignores.

In the docstrings of this package A is the number of annotations, (height, width) are pixels of an
image, and a box is x, y, width, height in pixels of its image, as COCO writes it.
"""

from .annotations import check_annotations
from .categories import check_coco_categories, check_num_classes, read_annotation_file
from .images import check_images, missing_images
from .records import check_records, records_without
from .report import Problem, Report, without_errors

__all__ = [
    "Problem",
    "Report",
    "check_annotations",
    "check_coco_categories",
    "check_images",
    "check_num_classes",
    "check_records",
    "missing_images",
    "read_annotation_file",
    "records_without",
    "without_errors",
]
