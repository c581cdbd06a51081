"""From a source, whose rows have labels, to a target like it, whose rows have none.

Files:
    coral: the linear map that gives rows of the source the moments of the target
    label_shift: classes are as before, and as many of each as there may be
    adversarial: features that tell a label and not the domain
    compare_labels: whether the labels after an adaptation are better than those before it
    reverse: whether the labels of the target tell those of the source
    class_evidence: the evidence of rows with labels, of which each class is a density
"""
