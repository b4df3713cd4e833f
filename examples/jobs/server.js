// Listens on the descriptor whose number is its argument.
const http = require('http');

http.createServer((request, response) => response.end('ok\n')).listen({ fd: Number(process.argv[2]) });
