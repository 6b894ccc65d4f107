"""The cars that recorded the public datasets. Rig origin: rear axle, on the ground."""

from neural_sim.road_users import EgoVehicle

# KITTI: Volkswagen Passat B6 Variant; the overhang behind the rear axle is estimated from the side view.
PASSAT_VARIANT = EgoVehicle(
    length_m=4.774, width_m=1.820, height_m=1.517, rear_axle_to_rear_bumper_m=1.1, wheelbase_m=2.71
)
# nuScenes: Renault Zoe. With the box centre 1.35 m ahead of the rear axle no logged overlap with a road user occurs.
RENAULT_ZOE = EgoVehicle(
    length_m=4.084, width_m=1.730, height_m=1.562, rear_axle_to_rear_bumper_m=0.692, wheelbase_m=2.588
)
# Argoverse 2: Ford Fusion Hybrid; overhang estimated from the side view.
FORD_FUSION = EgoVehicle(
    length_m=4.872, width_m=1.852, height_m=1.478, rear_axle_to_rear_bumper_m=1.08, wheelbase_m=2.850
)
# comma2k19: Honda Civic 2016 (one of the two cars); overhang estimated from the side view.
HONDA_CIVIC = EgoVehicle(
    length_m=4.630, width_m=1.798, height_m=1.415, rear_axle_to_rear_bumper_m=1.04, wheelbase_m=2.700
)
