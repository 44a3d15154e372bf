"""The credit heatmap of any two trajectories under any model, without training: a page and a picture."""
