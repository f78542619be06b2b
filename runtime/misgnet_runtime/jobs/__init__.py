"""What a user asks for, from files to files, whole or not at all, and resumable: jobs work on an open detector."""
