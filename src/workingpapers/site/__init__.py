"""The page: papers in, search, trending, leaderboards, subscriptions, people, API and feeds."""
