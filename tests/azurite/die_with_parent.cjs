// Ends Azurite when the process that started it is gone, even if that was killed: no test run leaves servers behind.
const parent = process.ppid;
setInterval(() => {
  if (process.ppid !== parent) process.exit(1);
}, 500).unref();
