"""The console's SQL, and nothing else: plain functions that are given a connection.

Who calls them decides what belongs into one transaction, and says what time it is.
"""

from __future__ import annotations

import psycopg

Connection = psycopg.Connection
DatabaseError = psycopg.Error
