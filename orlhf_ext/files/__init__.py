"""Files: records, journals, CSV, and what may be written."""
