"""From rows to labels and targets: regressions, discriminants, networks."""
