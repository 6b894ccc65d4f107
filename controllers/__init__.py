"""A plan becomes steering and acceleration: lateral and longitudinal tracking, plan delay."""
