"""Mail: the outbox, SMTP, subscriptions and the digest."""
