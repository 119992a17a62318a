"""Run an OpenRLHF launcher with extensions: ``python -m orlhf_ext.launch`` (or ``orlhf-ext launch``)."""
