// What node-resque sees, as JSON.
//
//   node failed.js show                queues with their jobs, failed jobs, workers and what they do, statistics
//   node failed.js retry|remove        every failed job; prints how many

"use strict";

const { Queue } = require("node-resque");
const { connection } = require("./connection");

async function show(queue) {
  const queues = {};
  for (const name of await queue.queues()) {
    queues[name] = await queue.queued(name, 0, -1);
  }
  return {
    queues,
    failed: await queue.failed(0, -1),
    delayed: await queue.allDelayed(),
    workers: await queue.workers(),
    working: await queue.allWorkingOn(),
    stats: await queue.stats(),
  };
}

async function withAll(queue, act) {
  const failed = await queue.failed(0, -1);
  for (const job of failed) {
    await act(job);
  }
  return failed.length;
}

async function main() {
  const queue = new Queue({ connection: connection() });
  await queue.connect();
  const commands = {
    show: () => show(queue),
    retry: () => withAll(queue, (job) => queue.retryAndRemoveFailed(job)),
    remove: () => withAll(queue, (job) => queue.removeFailed(job)),
  };
  const command = commands[process.argv[2]];
  if (command === undefined) {
    throw new Error(`no such command: ${process.argv[2]}`);
  }
  console.log(JSON.stringify(await command()));
  await queue.end();
  queue.connection.redis.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
