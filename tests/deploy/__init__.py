"""Image, compose file, manifests and dashboards, checked without Docker and without a cluster."""
