"""The plumbing: it knows no model, no guide, no network and no data set."""
