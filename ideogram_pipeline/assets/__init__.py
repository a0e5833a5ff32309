"""What exists, one module a stage, in graph order: tables, requests, images, catalog, gallery."""
