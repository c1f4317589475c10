"""The common image corruptions of Hendrycks and Dietterich, seeded per image."""
