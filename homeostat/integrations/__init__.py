"""homeostat inside other people's trainers, and their reward functions inside ours."""
