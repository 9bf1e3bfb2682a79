"""The VL-JEPA networks in torch: what is trained and exported, never what runs on the robot."""
