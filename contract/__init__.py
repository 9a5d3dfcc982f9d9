"""What two of Precept's programs must agree on, byte for byte."""
