"""Where an OpenDRIVE map lies on the earth."""

import xml.etree.ElementTree as ET

import numpy as np
from jaxtyping import Float

# Squared eccentricity of the WGS84 ellipsoid.
WGS84_E2 = 6.694379990141316e-3
_WGS84_RADIUS_M = 6_378_137.0


def T_map_world(root: ET.Element, T_ecef_world: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Pose of a scene's world in the coordinates of an OpenDRIVE document, m.

    The document's `geoReference` names latitude, longitude and height of its origin, whose axes are east, north, up.
    Without a usable one the two frames are the same. `T_ecef_world` places the world on the WGS84 ellipsoid.
    """
    origin = _origin(root)
    if origin is None:
        return np.eye(4)
    T_map_ecef = np.eye(4)
    rotation = enu_axes(np.radians(origin[0]), np.radians(origin[1]))
    T_map_ecef[:3, :3] = rotation
    T_map_ecef[:3, 3] = -rotation @ ecef_position(np.radians(origin[0]), np.radians(origin[1]), origin[2])
    return T_map_ecef @ T_ecef_world


def enu_axes(latitude_rad: float, longitude_rad: float) -> Float[np.ndarray, "3 3"]:
    """Rotation from earth-centred axes to east, north, up at a geodetic position."""
    east = np.array([-np.sin(longitude_rad), np.cos(longitude_rad), 0.0])
    level = np.array([np.cos(longitude_rad), np.sin(longitude_rad), 0.0])
    up = np.cos(latitude_rad) * level + np.sin(latitude_rad) * np.array([0.0, 0.0, 1.0])
    return np.stack([east, np.cross(up, east), up])


def ecef_position(latitude_rad: float, longitude_rad: float, height_m: float) -> Float[np.ndarray, "3"]:
    """Earth-centred position of a geodetic one on the WGS84 ellipsoid, m."""
    sine, cosine = np.sin(latitude_rad), np.cos(latitude_rad)
    normal_m = _WGS84_RADIUS_M / np.sqrt(1 - WGS84_E2 * sine**2)
    across = (normal_m + height_m) * cosine
    x, y = across * np.cos(longitude_rad), across * np.sin(longitude_rad)
    return np.array([x, y, (normal_m * (1 - WGS84_E2) + height_m) * sine])


def _origin(root: ET.Element) -> tuple[float, float, float] | None:
    """Latitude, longitude (degrees) and height (m) in the PROJ text of the document."""
    reference = root.find(".//geoReference")
    words = (reference.text or "").split() if reference is not None else []
    values: dict[str, float] = {}
    for name, _, text in (word.lstrip("+").partition("=") for word in words):
        try:
            values[name] = float(text)
        except ValueError:
            continue
    latitude, longitude = values.get("lat_0", np.nan), values.get("lon_0", np.nan)
    height = values.get("alt_0", values.get("h_0", 0.0))
    sound = abs(latitude) <= 90 and abs(longitude) <= 180 and abs(height) < 1e5
    return (latitude, longitude, height) if sound else None
