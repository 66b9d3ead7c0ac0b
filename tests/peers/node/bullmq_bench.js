// How many no-op jobs a second one worker of BullMQ does: node bullmq_bench.js JOBS [CONCURRENCY]. Prints JSON.
//
// Finished jobs are removed, as they are with the others that this is compared to. The database that REDIS_URL names
// is emptied first.

"use strict";

const { Queue, Worker } = require("bullmq");
const { connect } = require("./connection");

const SLICE = 1000;

const since = (begun) => Number(process.hrtime.bigint() - begun) / 1e9;

async function main() {
  const count = Number(process.argv[2]);
  const concurrency = Number(process.argv[3] ?? 20);
  const connection = connect();
  await connection.flushdb();

  const queue = new Queue("bench", { connection, defaultJobOptions: { removeOnComplete: true } });
  let begun = process.hrtime.bigint();
  for (let from = 0; from < count; from += SLICE) {
    const length = Math.min(SLICE, count - from);
    await queue.addBulk(Array.from({ length }, (_, place) => ({ name: "noop", data: from + place })));
  }
  const enqueued = since(begun);

  const worker = new Worker("bench", async () => {}, { connection: connect(), concurrency, autorun: false });
  begun = process.hrtime.bigint();
  await new Promise((resolve, reject) => {
    let left = count;
    worker.on("completed", () => {
      left -= 1;
      if (left === 0) {
        resolve();
      }
    });
    worker.on("failed", (_, error) => reject(error));
    worker.run().catch(reject);
  });
  const seconds = since(begun);

  console.log(
    JSON.stringify({
      jobs: count,
      concurrency,
      seconds: Number(seconds.toFixed(3)),
      jobs_per_second: Math.round(count / seconds),
      enqueued_per_second: Math.round(count / enqueued),
    }),
  );
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
