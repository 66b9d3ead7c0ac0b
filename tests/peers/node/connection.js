// Where Redis is, says REDIS_URL; the keys begin as Resque's do.

"use strict";

const Redis = require("ioredis");

const NAMESPACE = "resque";

function connect() {
  // BullMQ wants it so: a blocking command waits for as long as it takes.
  return new Redis(process.env.REDIS_URL, { maxRetriesPerRequest: null });
}

// For node-resque.
function connection() {
  return { redis: connect(), namespace: NAMESPACE };
}

module.exports = { connect, connection };
