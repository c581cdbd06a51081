"""Networks that are split over the processes of a run."""
