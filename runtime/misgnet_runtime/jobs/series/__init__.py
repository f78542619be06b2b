"""Series of dates by split engines: each date's features are kept on disk, and any two are compared by them."""
