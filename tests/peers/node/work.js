// A worker and a scheduler of node-resque, until SIGTERM: node work.js QUEUE... Says "ready" when it looks for jobs.
//
// A job says what it did in the lists that Sidekiq's jobs use too: "peer:began" and "peer:ran", each entry
// {"class", "args", "pid"}.

"use strict";

const { Scheduler, Worker } = require("node-resque");
const { connect, connection } = require("./connection");

const told = connect();

function tell(list, kind, args) {
  return told.rpush(list, JSON.stringify({ class: kind, args, pid: process.pid }));
}

const jobs = {
  // Takes any arguments, and ends at once.
  Note: {
    perform: async (...args) => {
      await tell("peer:began", "Note", args);
      await tell("peer:ran", "Note", args);
    },
  },
  // Fails each time; its first argument is what it says.
  Fails: {
    perform: async (...args) => {
      await tell("peer:began", "Fails", args);
      throw new Error(String(args[0]));
    },
  },
  // Fails until the key "peer:mend" is there.
  FailsUntilMended: {
    perform: async (...args) => {
      await tell("peer:began", "FailsUntilMended", args);
      if ((await told.get("peer:mend")) === null) {
        throw new Error("not mended");
      }
      await tell("peer:ran", "FailsUntilMended", args);
    },
  },
  // Is busy until somebody pushes to the list that its first argument names; a minute at most.
  Waits: {
    perform: async (...args) => {
      await tell("peer:began", "Waits", args);
      const own = connect();
      await own.blpop(args[0], 60);
      own.disconnect();
      await tell("peer:ran", "Waits", args);
    },
  },
};

async function main() {
  const queues = process.argv.slice(2);
  const worker = new Worker({ connection: connection(), queues, timeout: 50 }, jobs);
  const scheduler = new Scheduler({ connection: connection(), timeout: 200 });
  for (const part of [worker, scheduler]) {
    part.on("error", (error) => console.error(error));
    await part.connect();
  }
  process.on("SIGTERM", async () => {
    await scheduler.end();
    await worker.end();
    process.exit(0);
  });
  await worker.start();
  await scheduler.start();
  console.log("ready");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
