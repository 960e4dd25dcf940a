"""Networks: the paper's encoder and U-Net, and the light pair."""
