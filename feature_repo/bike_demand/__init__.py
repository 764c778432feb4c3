"""The use case bike_demand: how many bikes stand at a station of a bike share."""
