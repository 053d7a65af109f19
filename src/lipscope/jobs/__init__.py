"""What the commands do: one job a file, from a network and data to a report, in a run folder that resumes."""
