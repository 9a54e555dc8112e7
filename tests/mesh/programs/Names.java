import java.net.InetAddress;
import java.net.Inet6Address;
import java.net.Socket;
import java.nio.charset.StandardCharsets;

/** Connects to HOST PORT and prints what it sees of both ends, and what the server answered. */
public class Names {
	static String text(InetAddress address, int port) {
		String host = address.getHostAddress().replaceAll("%.*", "");
		return (address instanceof Inet6Address ? "[" + short6(host) + "]" : host) + ":" + port;
	}

	/** Java prints all eight groups: the longest run of zeros becomes "::". */
	static String short6(String host) {
		return host.replaceFirst("(^|:)(0(:0)+)(:|$)", "::");
	}

	public static void main(String[] arguments) throws Exception {
		try (Socket socket = new Socket(arguments[0], Integer.parseInt(arguments[1]))) {
			String own = text(socket.getLocalAddress(), socket.getLocalPort());
			String peer = text(socket.getInetAddress(), socket.getPort());
			String answer = new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
			System.out.printf("{\"getsockname\":\"%s\",\"getpeername\":\"%s\",\"server\":%s}%n", own, peer, answer);
		}
	}
}
