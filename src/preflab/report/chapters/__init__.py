"""The chapters of a study's report, a file each."""
