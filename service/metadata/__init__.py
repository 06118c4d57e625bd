"""What is known about uploads, links and files: the MetadataStore port (`base`) and its adapter."""
