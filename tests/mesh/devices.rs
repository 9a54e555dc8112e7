//! Sockets bound to a device, and addresses of one link: the pod's own interface changes nothing; another one, and what is
//! link-local, lead past the mesh, counted.

use anyhow::{Context, Result, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::apps::{self, Nginx};
use mesh_tests::world::netns;

use crate::corners::{counted, sockets};
use crate::shop::{ECHO, NAMES, Shop, VIP, VIP6, text};

const PAGE: &str = "a page for a client that is kept to its interface";

#[test]
fn a_socket_bound_to_the_pods_own_interface_goes_through_the_mesh() -> Result<()> {
    let shop = Shop::open()?;
    let _nginx = Nginx::start(&shop.api, PAGE)?;
    let urls = [format!("http://{}/", shop.api.at(80)), format!("http://{}/", shop.api.at6(80))];
    for url in &urls {
        let arguments = ["-sS", "--max-time", "5", "--interface", "eth0", url];
        let page = shop.web.run("curl", &arguments)?.success().context(url.clone())?;
        ensure!(page == PAGE, "{page}");
    }
    let port = ECHO.to_string();
    for (host, own) in [(VIP, shop.web.v4.to_string()), (VIP6, shop.web.v6.to_string())] {
        let told = sockets(&shop.web, &["device", host, &port, "eth0"])?;
        ensure!(told["device"] == "ok" && told["received"] == "hello", "{host}: {told}");
        ensure!(told["getpeername"] == format!("{host}:{port}") && told["getsockname"] == own, "{told}");
    }
    let id = shop.web.spiffe_id();
    for dialled in [shop.api.at(80), shop.api.at6(80), format!("{VIP}:{port}"), format!("[{VIP6}]:{port}")] {
        let record = shop.mesh.record(1, &[(names::DIALLED, &dialled), (names::REPORTER, names::SOURCE)])?;
        ensure!(field(&record, names::SOURCE_ID) == id, "{record}");
    }
    ensure!(counted(&shop, "connect_other_device")? == 0.0 && counted(&shop, "connect_device_kept")? == 0.0);
    Ok(())
}

#[test]
fn a_socket_bound_to_another_interface_passes_and_is_counted() -> Result<()> {
    let shop = Shop::open()?;
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    let _names = apps::peer_server(&outsider, "names", NAMES, &[])?;
    // A second network of the pod, as secondary interfaces give it one.
    netns::batch(
        shop.web.netns(),
        &[
            format!("link add net1 type veth peer name net1 netns {}", outsider.netns()),
            "addr add 192.168.77.1/24 dev net1".to_owned(),
            "addr add fd77::1/64 dev net1 nodad".to_owned(),
            "link set net1 up".to_owned(),
        ],
    )?;
    netns::batch(
        outsider.netns(),
        &[
            "addr add 192.168.77.2/24 dev net1".to_owned(),
            "addr add fd77::2/64 dev net1 nodad".to_owned(),
            "link set net1 up".to_owned(),
        ],
    )?;
    let port = NAMES.to_string();
    for (host, own) in [("192.168.77.2", "192.168.77.1"), ("fd77::2", "fd77::1")] {
        // Until the outsider is known, what comes to it is dropped.
        shop.mesh.in_force("the outsider to answer", || {
            let told = sockets(&shop.web, &["device", host, &port, "net1"])?;
            // What the server saw comes back as the beginning of its answer.
            ensure!(text(&told["received"]).contains(own), "{host}: {told}");
            ensure!(told["getsockname"] == own, "{host}: {told}");
            Ok(())
        })?;
    }
    ensure!(counted(&shop, "connect_other_device")? >= 2.0, "{}", counted(&shop, "connect_other_device")?);
    let records = shop.mesh.access_log(1);
    ensure!(records.0.is_empty(), "past the mesh there is no record: {:?}", records.0);
    Ok(())
}

#[test]
fn a_link_local_address_is_reached_past_the_mesh_and_counted() -> Result<()> {
    const METADATA: &str = "169.254.169.254";
    let shop = Shop::open()?;
    // Where a cloud's metadata service answers: on a link of the pod's.
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    let _names = apps::peer_server(&outsider, "names", NAMES, &[])?;
    let link = format!("link add meta0 type veth peer name meta0 netns {}", outsider.netns());
    let own = "addr add 169.254.169.1/24 dev meta0".to_owned();
    let up = "link set meta0 up".to_owned();
    netns::batch(shop.web.netns(), &[link, own, up.clone()])?;
    netns::batch(outsider.netns(), &[format!("addr add {METADATA}/24 dev meta0"), up])?;
    shop.mesh.in_force("the service to answer", || {
        let told = shop.ask_from(&shop.web, &format!("{METADATA}:{NAMES}"))?;
        ensure!(text(&told["received"]).contains("169.254.169.1"), "{told}");
        Ok(())
    })?;
    ensure!(counted(&shop, "connect_never_redirected")? >= 1.0);
    let records = shop.mesh.access_log(1);
    ensure!(records.0.is_empty(), "past the mesh there is no record: {:?}", records.0);
    Ok(())
}
