"""The devices' side: jobs, their order, and the workers that run them. Imports admission, and knows no connections: a
job sends its events to a Reply."""
