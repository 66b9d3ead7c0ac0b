// Deletes jobs of these arguments from a queue, and prints how many there were.
//
//   node delete.js QUEUE CLASS '[1, "a"]'

"use strict";

const { Queue } = require("node-resque");
const { connection } = require("./connection");

async function main() {
  const [name, kind, args] = process.argv.slice(2);
  const queue = new Queue({ connection: connection() });
  await queue.connect();
  console.log(JSON.stringify(await queue.del(name, kind, JSON.parse(args))));
  await queue.end();
  queue.connection.redis.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
