"""The plumbing: it knows no family, no guide, no network and no data set."""
