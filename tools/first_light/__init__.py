"""The programs of `tools/first_light.sh`: what packlight does on a Hopper GPU, measured on its own functions."""
