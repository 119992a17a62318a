"""One builder per raw data set: ``python -m orlhf_ext.build_data NAME``. None loads torch, transformers or vllm."""
