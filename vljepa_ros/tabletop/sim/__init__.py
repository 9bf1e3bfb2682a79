"""The simulated table: physics, pictures, and the truth about them. The only place of MuJoCo."""
