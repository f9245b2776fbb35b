"""How products on packed weights are made fast: C++ on a CPU, Pallas Mosaic on GPUs and TPUs."""
