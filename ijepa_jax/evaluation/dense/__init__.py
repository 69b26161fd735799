"""Light heads on frozen patch tokens: segmentation and detection."""
