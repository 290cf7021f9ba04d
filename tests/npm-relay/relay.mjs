// An independent Nostr relay (npm `@nostr-relay/core`, SQLite) for the end-to-end tests.
//
//   node relay.mjs [--port PORT] [--data FILE]
//
// Port 0, the default, takes a free one. Without --data the events are in memory only. One line on stdout says that it is ready:
// {"ready":true,"url":"ws://127.0.0.1:PORT"}. It ends when stdin closes, so a test that dies leaves no relay behind.
import { parseArgs } from 'node:util'
import { WebSocketServer } from 'ws'
import core from '@nostr-relay/core'
import sqlite from '@nostr-relay/event-repository-sqlite'
import validation from '@nostr-relay/validator'

const { values } = parseArgs({ options: { port: { type: 'string', default: '0' }, data: { type: 'string' } } })

const repository = new sqlite.EventRepositorySqlite(values.data ?? ':memory:')
await repository.init()
const relay = new core.NostrRelay(repository)
const validator = new validation.Validator()
const server = new WebSocketServer({ host: '127.0.0.1', port: Number(values.port) })

server.on('connection', (socket, request) => {
  request.socket.setNoDelay(true)
  relay.handleConnection(socket)
  socket.on('message', async (data) => {
    try {
      await relay.handleMessage(socket, await validator.validateIncomingMessage(data))
    } catch (error) {
      socket.send(JSON.stringify(['NOTICE', String(error.message)]))
    }
  })
  socket.on('close', () => relay.handleDisconnect(socket))
  socket.on('error', () => {})
})

server.on('listening', () => {
  console.log(JSON.stringify({ ready: true, url: `ws://127.0.0.1:${server.address().port}` }))
})
server.on('error', (error) => {
  console.error(error.message)
  process.exit(1)
})

const stop = async () => {
  for (const socket of server.clients) socket.terminate()
  server.close()
  await repository.destroy?.()
  process.exit(0)
}
process.on('SIGTERM', stop)
process.on('SIGINT', stop)
process.stdin.on('end', stop).resume()
