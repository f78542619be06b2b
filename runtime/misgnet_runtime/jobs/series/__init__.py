"""Series of dates with split engines: each date's features are stored on disk, and pairs of dates compared by them."""
