"""Around a job: its folders, wiped before and after, and the files that it brings."""
