// Enqueues jobs of any class, and prints how many.
//
//   node enqueue.js QUEUE CLASS '[[1, "a"], [2, "b"]]' [MILLISECONDS]
//
// The third argument has the arguments of each job; with the fourth they are delayed.

"use strict";

const { Queue } = require("node-resque");
const { connection } = require("./connection");

async function main() {
  const [name, kind, args = "[[]]", delay] = process.argv.slice(2);
  const queue = new Queue({ connection: connection() });
  await queue.connect();
  let count = 0;
  for (const one of JSON.parse(args)) {
    if (delay === undefined) {
      await queue.enqueue(name, kind, one);
    } else {
      await queue.enqueueIn(Number(delay), name, kind, one);
    }
    count += 1;
  }
  console.log(JSON.stringify(count));
  await queue.end();
  queue.connection.redis.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
